"""What comes back: bounces, complaints and auto-replies, read and judged. Start at explain.py."""
