"""What compilers for accelerators plan: on which shapes (`cases`), and the page of it (`page`)."""
