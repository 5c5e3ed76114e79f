package authn

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// tokenClaims are a token's claims that we read. Each has the type that it must
// have, or the token is refused.
type tokenClaims struct {
	issuer, subject, userID      string
	audience                     []string
	expires, notBefore, issuedAt *jwt.NumericDate
	permissions                  []string
}

// UnmarshalJSON reads claims strictly.
func (c *tokenClaims) UnmarshalJSON(raw []byte) error {
	object, err := strictObject(raw)
	if err != nil {
		return err
	}
	for _, claim := range []struct {
		name string
		into *string
	}{{"iss", &c.issuer}, {"sub", &c.subject}, {"user_id", &c.userID}} {
		if *claim.into, err = stringClaim(object, claim.name); err != nil {
			return err
		}
	}
	for _, claim := range []struct {
		name string
		into **jwt.NumericDate
	}{{"exp", &c.expires}, {"nbf", &c.notBefore}, {"iat", &c.issuedAt}} {
		if *claim.into, err = timeClaim(object, claim.name); err != nil {
			return err
		}
	}
	if audience, ok := object["aud"].(string); ok {
		c.audience = []string{audience}
	} else if c.audience, err = listClaim(object, "aud"); err != nil {
		return err
	}
	if c.permissions, err = listClaim(object, "permissions"); err != nil {
		return err
	}
	for _, p := range c.permissions {
		if !validPermission(p) {
			return errors.New("claim permissions: a value is no permission")
		}
	}
	return nil
}

// principal is whom the token is for: user_id and sub, which must not differ.
func (c *tokenClaims) principal() (string, error) {
	switch {
	case c.userID == "" && c.subject == "":
		return "", errors.New("it has neither user_id nor sub")
	case c.userID == "":
		return c.subject, nil
	case c.subject != "" && c.subject != c.userID:
		return "", errors.New("its user_id and its sub differ")
	}
	return c.userID, nil
}

// stringClaim gives a string; "" where there is no such claim. An empty one is
// none that anybody means.
func stringClaim(object map[string]any, name string) (string, error) {
	value, ok := object[name]
	if !ok {
		return "", nil
	}
	text, ok := value.(string)
	if !ok || text == "" {
		return "", fmt.Errorf("claim %s: not a string", name)
	}
	return text, nil
}

// listClaim gives a list of strings; nil where there is no such claim.
func listClaim(object map[string]any, name string) ([]string, error) {
	value, ok := object[name]
	if !ok {
		return nil, nil
	}
	values, ok := value.([]any)
	if !ok {
		return nil, fmt.Errorf("claim %s: not a list of strings", name)
	}
	list := make([]string, len(values))
	for i, v := range values {
		if list[i], ok = v.(string); !ok {
			return nil, fmt.Errorf("claim %s: not a list of strings", name)
		}
	}
	return list, nil
}

// lastSecond is the end of the year 9999: what comes after it is no time that
// an issuer means.
const lastSecond = 253402300799

// timeClaim gives a time in seconds; nil where there is no such claim.
func timeClaim(object map[string]any, name string) (*jwt.NumericDate, error) {
	value, ok := object[name]
	if !ok {
		return nil, nil
	}
	number, _ := value.(json.Number)
	seconds, err := number.Float64()
	if err != nil || math.IsNaN(seconds) || seconds < 0 || seconds > lastSecond {
		return nil, fmt.Errorf("claim %s: not a time in seconds", name)
	}
	// Whole seconds, rounded down: no token lives longer than it says.
	return jwt.NewNumericDate(time.Unix(int64(seconds), 0)), nil
}

// validPermission tells what the contract calls a permission: words of
// lower-case letters, digits and '-', with ':' between them, the last one
// possibly '*'.
func validPermission(p string) bool {
	const most = 128
	words := strings.Split(p, ":")
	if last := len(words) - 1; last > 0 && words[last] == "*" {
		words = words[:last]
	}
	for _, w := range words {
		if w == "" || strings.Trim(w, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return len(p) <= most
}

// GetExpirationTime is for the library.
func (c *tokenClaims) GetExpirationTime() (*jwt.NumericDate, error) { return c.expires, nil }

// GetIssuedAt is for the library.
func (c *tokenClaims) GetIssuedAt() (*jwt.NumericDate, error) { return c.issuedAt, nil }

// GetNotBefore is for the library.
func (c *tokenClaims) GetNotBefore() (*jwt.NumericDate, error) { return c.notBefore, nil }

// GetIssuer is for the library.
func (c *tokenClaims) GetIssuer() (string, error) { return c.issuer, nil }

// GetSubject is for the library.
func (c *tokenClaims) GetSubject() (string, error) { return c.subject, nil }

// GetAudience is for the library.
func (c *tokenClaims) GetAudience() (jwt.ClaimStrings, error) { return c.audience, nil }
