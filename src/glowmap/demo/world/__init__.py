"""A drawn world whose truth is known: streets, and the kinds of things that stand in them."""
