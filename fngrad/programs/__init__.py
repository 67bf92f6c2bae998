"""Programs of JAX: cut, counted, watched; signatures and optional libraries."""
