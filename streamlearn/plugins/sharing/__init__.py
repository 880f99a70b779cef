"""What tasks share: heads by task."""
