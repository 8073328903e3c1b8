"""What the report notebooks share."""
