"""What compilers for accelerators plan: whose losses (`losses`), on which shapes (`cases`), and the page of it (`page`)."""
