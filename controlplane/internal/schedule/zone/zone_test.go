package zone

import (
	"strings"
	"testing"

	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestZonesAreNamedAsIANANamesThem(t *testing.T) {
	for _, name := range []string{"UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia"} {
		if z, err := Load("time_zone", name); err != nil || z.String() != name {
			t.Errorf("%s is %v: %v", name, z, err)
		}
	}
	if z, err := Load("time_zone", ""); err != nil || z.String() != "UTC" {
		t.Errorf("no name is %v: %v", z, err)
	}
	for _, name := range []string{"Local", "Europe/Nowhere", "../etc/passwd", "/etc/localtime", "+02:00", "europe berlin", " UTC", "a\x00b"} {
		_, err := Load("time_zone", name)
		if !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), "time_zone") || !strings.Contains(err.Error(), "IANA") {
			t.Errorf("%q: %v", name, err)
		}
	}
}
