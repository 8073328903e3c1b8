"""What everything rests on: checked settings, the machine, work that is resumed."""
