"""What a fit sees: starts, the teacher and its states, over one process or many."""
