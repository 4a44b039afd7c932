"""Every figure, drawn from records alone. No torch."""
