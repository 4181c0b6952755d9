"""A drawn world with known truth: streets, and the kinds of objects in them."""
