package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/ssm"
)

const (
	maxTokenAddresses = 5
	maxExpires        = 30 * 24 * time.Hour
)

func (e *env) activationCommand() *cli.Command {
	return &cli.Command{
		Name: "activation", Aliases: []string{"activations"}, Category: categoryNouns, Usage: "permissions to join the fleet",
		Subcommands: []*cli.Command{
			leaf(&cli.Command{
				Name: "create", Usage: "let hosts join, and print the token they need",
				Description: `The token is shown once. Whoever has it can enrol as many hosts as --limit
says, until --expires. The hosts get the labels.

With --replaces, the one host that joins with it takes the place of NODE: its
name and its labels. In the same moment NODE is of the fleet no more, as after
"fleet node rm"; until then nothing changes for it. What ran on it stays with
its ID. A host of the quorum is not replaced. It needs the right to remove hosts
as well, DeregisterManagedInstance.

Examples:
  fleet activation create --limit 2 --label env=prod --token-file t
  fleet activation create --expires 2h --name web3
  fleet activation create --replaces web7 --token-file t

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags([]cli.Flag{
					&cli.IntFlag{Name: "limit", Value: 1, Usage: "`N` hosts may join with it, 1 to 1000 (default 1)"},
					&cli.StringFlag{Name: "expires", Value: "24h", Usage: "it ends after `DURATION`, at most 30d (default 24h)"},
					&cli.StringSliceFlag{Name: "label", Aliases: []string{"l"},
						Usage: "each host gets the label `KEY=VALUE`; may be repeated"},
					&cli.StringFlag{Name: "name", Usage: "`NAME` of a host that gives none"},
					&cli.StringFlag{Name: "replaces", Usage: "the host that joins takes the place of `NODE`, which is then of the fleet no more"},
					&cli.StringFlag{Name: "description", Usage: "`TEXT` that is kept with it"},
					&cli.StringSliceFlag{Name: "address",
						Usage: "`IP:PORT` that joining hosts should ask, instead of the quorum's; may be repeated"},
					&cli.StringFlag{Name: "token-file", Usage: "write the token to the new `FILE` instead of the standard output"},
				}, outputFlag(), clientFlags(), timeoutFlag()),
			}, 0, 0, e.activationCreate),
			leaf(&cli.Command{
				Name: "ls", Aliases: []string{"list"}, Usage: "list activations",
				Description: `Example:
  fleet activation ls

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), staleFlag(), clientFlags(), timeoutFlag()),
			}, 0, 0, e.activationLs),
			leaf(&cli.Command{
				Name: "show", Aliases: []string{"get"}, ArgsUsage: "ACTIVATION", Usage: "show one activation",
				Description: `Example:
  fleet activation show 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), staleFlag(), clientFlags(), timeoutFlag()),
			}, 1, 1, e.activationShow),
			leaf(&cli.Command{
				Name: "rm", Aliases: []string{"delete"}, ArgsUsage: "ACTIVATION...",
				Usage: "end activations; hosts that joined with them stay",
				Description: `Example:
  fleet activation rm 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), clientFlags(), timeoutFlag()),
			}, 1, -1, e.activationRm),
		},
	}
}

func (e *env) activationCreate(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	req, err := e.activationRequest(c)
	if err != nil {
		return err
	}
	code, err := identity.NewCode()
	if err != nil {
		return err
	}
	key := code.Key().Public()
	req.PublicKey = key[:]
	if _, err := tokenAddresses(c); err != nil {
		return err
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()

	replaced, err := e.replaced(c, api)
	if err != nil {
		return err
	}
	req.Replaces = string(replaced.InstanceId)

	// All that can fail comes before the activation exists.
	token, err := newToken(c, api, code)
	if err != nil {
		return err
	}
	path := c.String("token-file")
	var file *os.File
	if path != "" {
		if file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			refused := fleet.Errorf(fleet.Invalid, "--token-file: %w", err)
			if errors.Is(err, fs.ErrExist) {
				return refused.WithHint("name another file, or remove that one if its token is no longer needed")
			}
			return refused
		}
	}
	var created ssm.CreateActivationResult
	err = api.Call(c.Context, "CreateActivation", req, &created)
	if err == nil {
		token.Activation, err = fleet.ParseActivationID(created.ActivationId)
	}
	if file != nil {
		if err == nil {
			_, err = fmt.Fprintln(file, token.Encode())
		}
		if err = errors.Join(err, file.Close()); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}
	if err != nil {
		return err
	}
	if replaced.InstanceId != "" {
		fmt.Fprintf(e.err, "the host that joins with it takes the place of %s (%s), which is then of the fleet no more\n",
			escapeCell(replaced.Name), replaced.InstanceId)
	}
	return e.printActivation(c, created, token, path)
}

// replaced is the host that --replaces names; the zero value when it is not
// given.
func (e *env) replaced(c *cli.Context, api *client.Client) (fleet.NodeView, error) {
	if c.String("replaces") == "" {
		return fleet.NodeView{}, nil
	}
	n, err := oneNode(c, api, c.String("replaces"), true)
	if err != nil {
		return fleet.NodeView{}, err
	}
	return *n, nil
}

func (e *env) activationRequest(c *cli.Context) (*ssm.CreateActivationRequest, error) {
	expires, err := durationFlag(c, "expires")
	if err != nil {
		return nil, err
	}
	if expires > maxExpires {
		return nil, usagef("--expires %s is over 30d", c.String("expires"))
	}
	limit := c.Int("limit")
	if limit < 1 || limit > 1000 {
		return nil, usagef("--limit %d is not between 1 and 1000", limit)
	}
	if c.IsSet("replaces") {
		if c.String("replaces") == "" {
			return nil, usagef("--replaces names no host")
		}
		if limit != 1 {
			return nil, usagef("--limit %d and --replaces exclude each other: one host takes the place of one", limit)
		}
		if len(c.StringSlice("label")) > 0 || c.String("name") != "" {
			return nil, usagef("--replaces excludes --label and --name: the host gets the name and the labels of the one that it replaces")
		}
	}
	req := &ssm.CreateActivationRequest{
		RegistrationLimit: limit, DefaultInstanceName: c.String("name"), Description: c.String("description"),
		ExpirationDate: ssm.Time(e.now().Add(expires).Unix()),
	}
	labels := map[string]string{}
	for _, text := range c.StringSlice("label") {
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return nil, usagef("--label %q is not KEY=VALUE", text)
		}
		if err := fleet.CheckLabel(key, value); err != nil {
			return nil, err
		}
		labels[key] = value
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		req.Tags = append(req.Tags, ssm.Tag{Key: key, Value: labels[key]})
	}
	return req, nil
}

// newToken makes the token but for the activation's ID: what joining hosts
// trust, and whom they ask.
func newToken(c *cli.Context, api *client.Client, code identity.Code) (identity.JoinToken, error) {
	var trust fleet.GetTrustResult
	if err := api.Call(c.Context, "GetTrust", fleet.GetTrustRequest{}, &trust); err != nil {
		return identity.JoinToken{}, err
	}
	root, err := identity.VerifyRoot(trust.RootCertificate, api.Fleet())
	if err != nil {
		return identity.JoinToken{}, err
	}
	addresses, err := tokenAddresses(c)
	if err == nil && len(addresses) == 0 {
		addresses, err = quorumAddresses(c, api)
	}
	if err != nil {
		return identity.JoinToken{}, err
	}
	return identity.JoinToken{Root: fleet.Sum(root[:]), Code: code, Addresses: addresses}, nil
}

// tokenAddresses are those that the operator named, if any.
func tokenAddresses(c *cli.Context) ([]string, error) {
	addresses := splitCommas(c.StringSlice("address"))
	if len(addresses) > maxTokenAddresses {
		return nil, usagef("%d addresses: a token holds %d", len(addresses), maxTokenAddresses)
	}
	return checkAddresses("--address", addresses)
}

// quorumAddresses is where the voters answer.
func quorumAddresses(c *cli.Context, api *client.Client) ([]string, error) {
	var quorum fleet.DescribeQuorumResult
	if err := api.Call(c.Context, "DescribeQuorum", fleet.DescribeQuorumRequest{}, &quorum); err != nil {
		return nil, err
	}
	var addresses []string
	for _, m := range quorum.Members {
		if m.Role == fleet.RoleNameVoter && m.Address != "" && len(addresses) < maxTokenAddresses {
			addresses = append(addresses, m.Address)
		}
	}
	return addresses, nil
}

// activationResult is what activation create prints as JSON.
type activationResult struct {
	ActivationId string `json:"ActivationId"`
	Token        string `json:"Token,omitempty"` // absent when it went to a file
	TokenFile    string `json:"TokenFile,omitempty"`
}

func (e *env) printActivation(c *cli.Context, created ssm.CreateActivationResult, token identity.JoinToken, path string) error {
	r := activationResult{ActivationId: created.ActivationId, TokenFile: path}
	if path == "" {
		r.Token = token.Encode()
	}
	return e.print(c, result{value: r, names: []string{r.ActivationId}, table: func(w io.Writer) {
		if path == "" {
			fmt.Fprintln(w, r.Token)
			fmt.Fprintf(e.err, "activation %s; the token is not shown again. On the host, which asks for it:\n"+
				"  fleet join\n", r.ActivationId)
			return
		}
		fmt.Fprintln(w, r.ActivationId)
		fmt.Fprintf(e.err, "the token is in %s. Copy it to the host; there:\n  fleet join --token-file %s\n", path, filepath.Base(path))
	}})
}

func (e *env) activationLs(c *cli.Context) error {
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	all := ssm.DescribeActivationsResult{ActivationList: []ssm.Activation{}}
	var req ssm.DescribeActivationsRequest
	for {
		var page ssm.DescribeActivationsResult
		if err := api.Call(c.Context, "DescribeActivations", req, &page); err != nil {
			return err
		}
		all.ActivationList = append(all.ActivationList, page.ActivationList...)
		if req.NextToken = page.NextToken; req.NextToken == "" {
			break
		}
	}
	var ids []string
	for _, a := range all.ActivationList {
		ids = append(ids, a.ActivationId)
	}
	return e.print(c, result{value: all, names: ids, table: func(w io.Writer) {
		t := newTable("ACTIVATION", "USED", "EXPIRES", "NAME", "LABELS", "REPLACES", "DESCRIPTION")
		for _, a := range all.ActivationList {
			t.add(a.ActivationId, usedText(a), until(e.now(), fleet.Instant(a.ExpirationDate)), a.DefaultInstanceName,
				labelText(labelsOf(a.Tags)), firstOf(a.ReplacesName, a.Replaces), a.Description)
		}
		t.write(w)
	}})
}

func usedText(a ssm.Activation) string {
	return fmt.Sprintf("%d/%d", a.RegistrationsCount, a.RegistrationLimit)
}

func labelsOf(tags []ssm.Tag) map[string]string {
	labels := map[string]string{}
	for _, tag := range tags {
		labels[tag.Key] = tag.Value
	}
	return labels
}

func (e *env) activationShow(c *cli.Context) error {
	id, err := fleet.ParseActivationID(c.Args().First())
	if err != nil {
		return err
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	var page ssm.DescribeActivationsResult
	err = api.Call(c.Context, "DescribeActivations", ssm.DescribeActivationsRequest{
		Filters: []ssm.DescribeActivationsFilter{{FilterKey: "ActivationIds", FilterValues: []string{string(id)}}},
	}, &page)
	if err != nil {
		return err
	}
	if len(page.ActivationList) != 1 {
		return fleet.Errorf(fleet.NotFound, "there is no activation %s", id).WithHint("it may have been ended; see: fleet activation ls")
	}
	a := page.ActivationList[0]
	return e.print(c, result{value: a, names: []string{a.ActivationId}, table: func(w io.Writer) {
		replaces := a.Replaces
		if a.ReplacesName != "" {
			replaces = fmt.Sprintf("%s (%s)", a.ReplacesName, a.Replaces)
		}
		properties(w, "activation", a.ActivationId, "used", usedText(a), "created", date(fleet.Instant(a.CreatedDate)),
			"expires", date(fleet.Instant(a.ExpirationDate))+", "+until(e.now(), fleet.Instant(a.ExpirationDate)), "name", a.DefaultInstanceName,
			"labels", labelText(labelsOf(a.Tags)), "replaces", replaces, "description", a.Description)
	}})
}

// endedActivations is what activation rm prints as JSON.
type endedActivations struct {
	ActivationIds []string `json:"ActivationIds"`
}

func (e *env) activationRm(c *cli.Context) error {
	for _, id := range c.Args().Slice() {
		if _, err := fleet.ParseActivationID(id); err != nil {
			return err
		}
	}
	if err := checkForm(c); err != nil {
		return err
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	ended := endedActivations{ActivationIds: []string{}}
	for _, id := range c.Args().Slice() {
		if err := api.Call(c.Context, "DeleteActivation", ssm.DeleteActivationRequest{ActivationId: id}, nil); err != nil {
			for _, done := range ended.ActivationIds { // what is done is done
				fmt.Fprintf(e.err, "activation %s ended\n", done)
			}
			return err
		}
		ended.ActivationIds = append(ended.ActivationIds, id)
	}
	return e.print(c, result{value: ended, names: ended.ActivationIds, table: func(w io.Writer) {
		for _, id := range ended.ActivationIds {
			fmt.Fprintf(w, "activation %s ended\n", id)
		}
	}})
}
