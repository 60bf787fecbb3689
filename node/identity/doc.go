// Package identity is who somebody is in a fleet and how that is proved: keys,
// certificates, trust.json, activations, and every small document that one of
// those keys signs.
//
// The chain of trust is short. The root key certifies quorum identities and
// issuing keys, and signs trust.json, which names the voters and issuing keys
// that count now. An issuing key certifies agents and signs node records. An
// agent key speaks for one host, an operator key for one person; both are
// compared with rows that the quorum decided, not with a certificate.
//
// What holds here:
//
//   - One algorithm, Ed25519, and one context per use (Use): a signature made
//     for one format never counts for another. Nothing is negotiated.
//   - What was signed is kept and passed on as the exact bytes. Every decoder
//     accepts only the bytes that our encoder makes from the decoded value, so
//     that one document has one encoding and two readers never see two
//     meanings. A new field is a new version of the format.
//   - A certificate speaks through its single URI name and nothing else.
//     VerifyChain checks each link itself instead of asking crypto/x509 to find
//     a path: the general verifier accepts far more shapes than the two that
//     exist here, and name constraints have been bypassed too often to carry a
//     role.
//   - Parsing never needs a clock, a network or a file; verifying takes the
//     time as an argument. Replicated code may call all of it.
//   - Private keys and activation codes cannot be printed, logged or encoded
//     by accident; the methods that give them away are few and named.
package identity
