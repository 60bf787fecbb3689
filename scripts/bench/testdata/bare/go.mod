// A module of its own: what fleet is compared with must not reach the program.
module fleet/scripts/bench/bare

go 1.26.0
