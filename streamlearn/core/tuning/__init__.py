"""Numbers that may be tuned: searched for by runs on the beginning of a stream, or moved while a run goes on."""
