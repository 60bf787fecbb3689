package nodeset

import "strings"

// maxNearest is the longest word that is compared: longer ones are no names.
const maxNearest = 253

// Nearest is the word that was probably meant by what somebody typed: one that
// begins so, or differs in at most two letters (one, in words of three letters
// or fewer); "" when none is near.
func Nearest(words []string, typed string) string {
	if len(typed) > maxNearest {
		return ""
	}
	best, distance := "", 3
	for _, w := range words {
		if len(w) > maxNearest {
			continue
		}
		begins := len(typed) >= 3 && strings.HasPrefix(w, typed)
		if difference := len(w) - len(typed); !begins && (difference > 2 || difference < -2) {
			continue
		}
		d := 1
		if !begins {
			d = editDistance(w, typed)
		}
		if limit := 2; d < distance && (d <= limit && len(typed) > 3 || d <= 1) {
			best, distance = w, d
		}
	}
	return best
}

// editDistance counts insertions, deletions, replacements and swaps of
// neighbours.
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
