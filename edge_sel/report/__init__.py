"""A page that people look at: runs, where their joules went, and the reference beside them."""
