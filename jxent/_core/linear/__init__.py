"""What the public modules are built from. Nothing here is public; it imports jax and itself only."""
