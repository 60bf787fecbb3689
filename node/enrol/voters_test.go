package enrol

import (
	"crypto/x509"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// host n has agent key A n, quorum key Q n and issuing key I n.
func host(n int) fleet.NodeID { return fleet.NodeIDOf(testKey('A', n).Public()) }

func hosts(numbers ...int) (ids []fleet.NodeID) {
	for _, n := range numbers {
		ids = append(ids, host(n))
	}
	return ids
}

func trustOf(t *testing.T, numbers ...int) *identity.Trust {
	t.Helper()
	tr := identity.Trust{Fleet: testFleet, Epoch: 1, Version: 4, K: identity.ThresholdFor(len(numbers))}
	for _, n := range numbers {
		tr.Voters = append(tr.Voters, identity.TrustVoter{Node: host(n), Key: testKey('Q', n).Public()})
		tr.Issuers = append(tr.Issuers, identity.TrustIssuer{Node: host(n), Key: testKey('I', n).Public()})
	}
	b := must[[]byte](t)(identity.SignTrust(testRoot, tr))
	return must[*identity.Trust](t)(identity.ParseTrust(b, testRoot.Public()))
}

func candidate(t *testing.T, n int) []byte {
	t.Helper()
	return must[[]byte](t)(identity.NewCandidate(identity.Candidate{
		Fleet: testFleet, Node: host(n), Quorum: testKey('Q', n).Public(), Issuer: testKey('I', n).Public(),
	}, testKey('A', n), testKey('Q', n), testKey('I', n)))
}

// agentKey is the row's key of hosts 1 to 9.
func agentKey(id fleet.NodeID) (fleet.PublicKey, error) {
	for n := range 10 {
		if host(n) == id {
			return testKey('A', n).Public(), nil
		}
	}
	return fleet.PublicKey{}, fleet.Errorf(fleet.NotFound, "no node %s", id)
}

func TestPlanVoters(t *testing.T) {
	for _, tc := range []struct {
		voters, candidates []int
		votes, eligible    []int // afterwards
		k                  int   // of the next trust.json; 0: there is none
	}{
		{[]int{1}, []int{2, 3}, []int{1, 2, 3}, nil, 2},
		{[]int{1}, []int{2}, []int{1}, []int{2}, 0},
		{[]int{1}, []int{2, 3, 4}, []int{1, 2, 3}, []int{4}, 2},
		{[]int{1}, []int{2, 3, 4, 5}, []int{1, 2, 3, 4, 5}, nil, 2},
		{[]int{1}, []int{3, 2}, []int{1, 3, 2}, nil, 2},
		{[]int{1}, []int{4, 3, 2}, []int{1, 4, 3}, []int{2}, 2}, // the last one named waits
		{[]int{1, 2, 3}, []int{4}, []int{1, 2, 3}, []int{4}, 0},
		{[]int{1, 2, 3}, []int{4, 5}, []int{1, 2, 3, 4, 5}, nil, 2},
	} {
		t.Run(fmt.Sprintf("%d+%d", len(tc.voters), len(tc.candidates)), func(t *testing.T) {
			trust := trustOf(t, tc.voters...)
			raw := string(trust.Raw())
			var requests [][]byte
			for _, n := range tc.candidates {
				requests = append(requests, candidate(t, n))
			}
			plan := must[*VoterPlan](t)(PlanVoters(trust, requests, agentKey))
			wantVotes := hosts(tc.votes...)
			slices.Sort(wantVotes)
			gotVotes := slices.Sorted(slices.Values(plan.Voters))
			if !slices.Equal(gotVotes, wantVotes) || !slices.Equal(plan.Eligible, hosts(tc.eligible...)) {
				t.Errorf("votes %v, eligible %v; want %v, %v", plan.Voters, plan.Eligible, wantVotes, hosts(tc.eligible...))
			}
			if len(plan.Candidates) != len(tc.candidates) {
				t.Errorf("%d candidates, want %d", len(plan.Candidates), len(tc.candidates))
			}
			file := rootKeyFile(t)
			req := must[*fleet.ChangeQuorumRequest](t)(plan.Sign(testRoot, file, testStart))
			checkSigned(t, req, tc.candidates)
			if tc.k == 0 {
				if req.Trust != nil || file.LastTrust != 0 {
					t.Errorf("trust version %d was signed; want none", file.LastTrust)
				}
				return
			}
			next := must[*identity.Trust](t)(identity.ParseTrust(req.Trust, testRoot.Public()))
			if next.Version != 5 || next.Epoch != 1 || next.K != tc.k || len(next.Voters) != len(tc.votes) || len(next.Issuers) != len(tc.votes) {
				t.Errorf("next trust.json: %+v; want version 5, k %d, %d voters", next, tc.k, len(tc.votes))
			}
			for _, n := range tc.votes {
				if !next.IsVoter(host(n), testKey('Q', n).Public()) || !next.Issuer(testKey('I', n).Public(), testStart) {
					t.Errorf("host %d does not vote, or may not issue, in the next trust.json", n)
				}
			}
			if file.LastTrust != 5 || must[*identity.RootKeyFile](t)(identity.ReadRootKeyFile(file.Path)).LastTrust != 5 {
				t.Errorf("the root-key file says version %d; want 5", file.LastTrust)
			}
			if string(trust.Raw()) != raw || trust.Version != 4 || len(trust.Voters) != len(tc.voters) {
				t.Error("the trust.json that was given changed")
			}
		})
	}
}

func rootKeyFile(t *testing.T) *identity.RootKeyFile {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.key")
	if err := identity.CreateRootKeyFile(path, "acme", testRoot, rootDER(t), nil, testStart); err != nil {
		t.Fatal(err)
	}
	return must[*identity.RootKeyFile](t)(identity.ReadRootKeyFile(path))
}

// checkSigned checks the certificates of a request for hosts by number.
func checkSigned(t *testing.T, req *fleet.ChangeQuorumRequest, numbers []int) {
	t.Helper()
	if len(req.Candidates) != len(numbers) {
		t.Fatalf("%d candidates in the request, want %d", len(req.Candidates), len(numbers))
	}
	root := must[*x509.Certificate](t)(x509.ParseCertificate(rootDER(t)))
	for i, n := range numbers {
		c := req.Candidates[i]
		quorum := must[*x509.Certificate](t)(x509.ParseCertificate(c.QuorumCertificate))
		peer, err := identity.VerifyChain([]*x509.Certificate{quorum, root}, testFleet, testStart)
		if err != nil || peer.Role != fleet.RoleQuorum || peer.Node != host(n) || peer.Key != testKey('Q', n).Public() || c.InstanceId != host(n) {
			t.Errorf("host %d: %+v, %v", n, peer, err)
		}
		// The issuing certificate shows in what it certifies.
		agent := testKey('A', 99)
		der := must[[]byte](t)(identity.IssueAgent(testKey('I', n), c.IssuerCertificate, fleet.NodeIDOf(agent.Public()), agent.Public(), testStart))
		chain := []*x509.Certificate{
			must[*x509.Certificate](t)(x509.ParseCertificate(der)), must[*x509.Certificate](t)(x509.ParseCertificate(c.IssuerCertificate)), root,
		}
		if peer, err := identity.VerifyChain(chain, testFleet, testStart); err != nil || peer.Issuer != testKey('I', n).Public() {
			t.Errorf("issuer of host %d: %+v, %v", n, peer, err)
		}
	}
}

func TestPlanVotersRefuses(t *testing.T) {
	altered := func(b []byte) []byte {
		b = slices.Clone(b)
		b[len(b)-1] ^= 1 // in the last signature
		return b
	}
	foreign := func(t *testing.T) []byte { // right keys, another fleet
		return must[[]byte](t)(identity.NewCandidate(identity.Candidate{
			Fleet: fleet.IDOf(testKey('R', 2).Public()), Node: host(2), Quorum: testKey('Q', 2).Public(), Issuer: testKey('I', 2).Public(),
		}, testKey('A', 2), testKey('Q', 2), testKey('I', 2)))
	}
	for _, tc := range []struct {
		name       string
		voters     []int
		candidates func(t *testing.T) [][]byte
		keys       func(fleet.NodeID) (fleet.PublicKey, error)
		kind       fleet.Kind
		part       string
	}{
		{"5+1", []int{1, 2, 3, 4, 5}, func(t *testing.T) [][]byte { return [][]byte{candidate(t, 6)} }, agentKey, fleet.Invalid, "at most 5 hosts vote"},
		{"3+3", []int{1, 2, 3}, func(t *testing.T) [][]byte { return [][]byte{candidate(t, 4), candidate(t, 5), candidate(t, 6)} },
			agentKey, fleet.Invalid, "at most 5 hosts vote"},
		{"a voter", []int{1, 2, 3}, func(t *testing.T) [][]byte { return [][]byte{candidate(t, 2)} }, agentKey, fleet.Conflict, "votes already"},
		{"named twice", []int{1}, func(t *testing.T) [][]byte { return [][]byte{candidate(t, 2), candidate(t, 2)} }, agentKey, fleet.Conflict, "named twice"},
		{"another fleet", []int{1}, func(t *testing.T) [][]byte { return [][]byte{foreign(t)} }, agentKey, fleet.Denied, "asks to vote in fleet"},
		{"altered", []int{1}, func(t *testing.T) [][]byte { return [][]byte{altered(candidate(t, 2)), candidate(t, 3)} }, agentKey,
			fleet.Unauthenticated, "does not show that it has the keys"},
		{"a row with another key", []int{1}, func(t *testing.T) [][]byte { return [][]byte{candidate(t, 2)} },
			func(fleet.NodeID) (fleet.PublicKey, error) { return testKey('A', 3).Public(), nil }, fleet.Unauthenticated, "not signed by"},
		{"a row without a key", []int{1}, func(t *testing.T) [][]byte { return [][]byte{candidate(t, 2)} },
			func(fleet.NodeID) (fleet.PublicKey, error) { return fleet.PublicKey{}, nil }, fleet.Unauthenticated, "not signed by"},
		{"no such node", []int{1}, func(t *testing.T) [][]byte { return [][]byte{candidate(t, 20)} }, agentKey, fleet.NotFound, "no node"},
		{"not a candidate", []int{1}, func(*testing.T) [][]byte { return [][]byte{[]byte("x")} }, agentKey, fleet.Invalid, "candidate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			plan, err := PlanVoters(trustOf(t, tc.voters...), tc.candidates(t), tc.keys)
			wantError(t, err, tc.kind, tc.part)
			if plan != nil {
				t.Error("a plan beside the error")
			}
		})
	}
}

// TestTwoCandidatesWithOneKey: each request is in order, both together are not.
func TestTwoCandidatesWithOneKey(t *testing.T) {
	same := func(n int) []byte {
		return must[[]byte](t)(identity.NewCandidate(identity.Candidate{
			Fleet: testFleet, Node: host(n), Quorum: testKey('Q', 2).Public(), Issuer: testKey('I', n).Public(),
		}, testKey('A', n), testKey('Q', 2), testKey('I', n)))
	}
	plan := must[*VoterPlan](t)(PlanVoters(trustOf(t, 1), [][]byte{same(2), same(3)}, agentKey))
	file := rootKeyFile(t)
	if _, err := plan.Sign(testRoot, file, testStart); err == nil || file.LastTrust != 0 {
		t.Errorf("signed as version %d, %v; want it refused", file.LastTrust, err)
	}
}

func TestSignRefuses(t *testing.T) {
	plan := func(t *testing.T) *VoterPlan {
		return must[*VoterPlan](t)(PlanVoters(trustOf(t, 1), [][]byte{candidate(t, 2), candidate(t, 3)}, agentKey))
	}
	t.Run("another root key", func(t *testing.T) {
		if req, err := plan(t).Sign(testKey('R', 2), rootKeyFile(t), testStart); err == nil || req != nil {
			t.Errorf("signed: %v, %v", req, err)
		}
	})
	t.Run("after an older version than was shown", func(t *testing.T) {
		file := rootKeyFile(t)
		if err := file.NoteTrust(9); err != nil {
			t.Fatal(err)
		}
		req, err := plan(t).Sign(testRoot, file, testStart)
		wantError(t, err, fleet.Conflict, "it has shown version 9")
		if req != nil {
			t.Error("a request beside the error")
		}
	})
	t.Run("the same again", func(t *testing.T) {
		file, p := rootKeyFile(t), plan(t)
		first := must[*fleet.ChangeQuorumRequest](t)(p.Sign(testRoot, file, testStart))
		again := must[*fleet.ChangeQuorumRequest](t)(p.Sign(testRoot, file, testStart))
		if string(first.Trust) != string(again.Trust) {
			t.Error("another trust.json of the same version")
		}
	})
}
