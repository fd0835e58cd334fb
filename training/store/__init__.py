"""Files of a fit: the journal, the locked folder and the delivered results."""
