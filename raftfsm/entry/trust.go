package entry

// MaxTrust is the largest trust.json, in bytes.
const MaxTrust = 64 << 10

// Genesis is the first entry of a fleet's log, signed by the root key.
type Genesis struct {
	Payload []byte `msgpack:"p"` // identity.ParseGenesis reads it
}

// Kind is KindGenesis.
func (*Genesis) Kind() Kind { return KindGenesis }

// Check accepts the form.
func (e *Genesis) Check() error { return checkBytes("genesis", e.Payload, MaxSize) }

// Trust carries the next version of trust.json, signed by the root key.
type Trust struct {
	Stamp int64  `msgpack:"s"`
	Trust []byte `msgpack:"t"` // the exact bytes of trust.json
}

// Kind is KindTrust.
func (*Trust) Kind() Kind { return KindTrust }

// Check accepts the form.
func (e *Trust) Check() error {
	if err := CheckStamp(e.Stamp); err != nil {
		return err
	}
	return checkBytes("trust.json", e.Trust, MaxTrust)
}
