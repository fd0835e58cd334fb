"""The data of a fit: starts, and the teacher's states for them, in one process or several."""
