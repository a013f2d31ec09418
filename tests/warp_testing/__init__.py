"""What several test modules share: real servers, broken networks, models."""
