"""Scheduled jobs. Each is safe to stop anywhere and to repeat: a run that was lost takes place again."""
