"""Votes of whole profiles: which are cast, where they lie, and what they certify."""
