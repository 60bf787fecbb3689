package api

import (
	"encoding/base64"
	"strings"

	"fleet/node/fleet"
	"fleet/node/ssm"
)

// A page ends with a token that holds the key of its last row: rows that come
// or go between two pages neither repeat nor hide others.

const tokenPrefix = "1|" // version of the token's form

// pageToken makes the token for the rows after key.
func pageToken(key string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(tokenPrefix + key))
}

// pageKey reads a token; "" for none.
func pageKey(token string) (string, error) {
	if token == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	key, ok := strings.CutPrefix(string(b), tokenPrefix)
	if err != nil || !ok || key == "" || len(key) > 200 {
		return "", fleet.CodeErrorf(fleet.Invalid, ssm.InvalidNextToken, "the NextToken is not one that was given out")
	}
	return key, nil
}

// pageSize checks MaxResults; 0 is most.
func pageSize(asked, least, most int) (int, error) {
	if asked == 0 {
		return most, nil
	}
	if asked < least || asked > most {
		return 0, fleet.CodeErrorf(fleet.Invalid, ssm.ValidationException, "MaxResults %d is not between %d and %d",
			asked, least, most)
	}
	return asked, nil
}

// pageOf cuts a page out of rows, which are in ascending order of their keys:
// the first size rows after the token, and the token of the next page.
func pageOf[T any](rows []T, key func(T) string, token string, size int) ([]T, string, error) {
	after, err := pageKey(token)
	if err != nil {
		return nil, "", err
	}
	begin := 0
	for begin < len(rows) && after != "" && key(rows[begin]) <= after {
		begin++
	}
	rows = rows[begin:]
	if len(rows) <= size {
		return rows, "", nil
	}
	return rows[:size], pageToken(key(rows[size-1])), nil
}
