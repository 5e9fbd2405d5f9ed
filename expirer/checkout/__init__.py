"""The checkout's side of the contract."""
