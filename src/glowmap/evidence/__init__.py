"""Evidence: a session runs the model and fetches what methods ask for, in files by price."""
