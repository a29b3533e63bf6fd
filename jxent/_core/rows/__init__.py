"""What the losses need to know of each row of scores."""
