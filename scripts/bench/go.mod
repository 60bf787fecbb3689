// A module of its own: what fleet is compared with must not reach the program.
module fleet/scripts/bench

go 1.26.0
