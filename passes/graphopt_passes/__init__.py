"""The pass library of graphopt. It plugs in through entry points, the way anybody's passes would."""
