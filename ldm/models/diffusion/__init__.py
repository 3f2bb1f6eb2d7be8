"""Schedules, samplers, and the model that joins the networks."""
