"""Speed of the parts against each other, measured in turns within one run."""
