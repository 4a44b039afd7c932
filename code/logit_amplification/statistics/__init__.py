"""From values to intervals, tests and rates: numbers alone, nothing of models or runs."""
