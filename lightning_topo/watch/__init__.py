"""One training watched, whatever runs its loop."""
