"""Share one sweep among several processes: their ranks, and which cells each one makes."""
