"""Trackers that a recipe names (`training.report_to`): one run a campaign, with its training and its evaluations."""
