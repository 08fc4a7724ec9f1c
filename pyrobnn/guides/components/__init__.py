"""What single families are built of."""
