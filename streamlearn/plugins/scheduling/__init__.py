"""Which task or experience comes next, and how often a batch is used."""
