"""Feedback on samples: rewards, rules and the statistics of honest reports. Empty, so that workers start fast."""
