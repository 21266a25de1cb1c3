"""Intake: what a bar table says about itself, compared with how it is configured."""
