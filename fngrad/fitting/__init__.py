"""`fngrad.fit` (in `training_loop`) and its parts."""
