package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Limits of a tree.
const (
	maxDepth = 32
	maxNodes = 20_000 // aliases count as often as they are used

	// maxBlank bounds the blank lines of YAML, multiplied by its size: its
	// scanner copies a block of text at each of them. It allows 512 in a document
	// of the largest size. JSON has no such limit.
	maxBlank = 32 << 20
)

// parseTree reads JSON or YAML into a tree of nil, bool, int64, float64,
// string, []any and map[string]any. Both refuse keys that occur twice.
func parseTree(content []byte) (any, error) {
	if !utf8.Valid(content) || bytes.IndexByte(content, 0) >= 0 {
		return nil, errors.New("it is not UTF-8 text")
	}
	trimmed := bytes.TrimLeft(content, " \t\r\n")
	if len(trimmed) == 0 {
		return nil, errors.New("it is empty")
	}
	if trimmed[0] == '{' {
		return parseJSON(content)
	}
	return parseYAML(content)
}

// budget counts the nodes of a tree and how deep they are.
type budget struct{ nodes int }

func (b *budget) take(depth int) error {
	b.nodes++
	switch {
	case depth > maxDepth:
		return fmt.Errorf("it is nested deeper than %d", maxDepth)
	case b.nodes > maxNodes:
		return fmt.Errorf("it has more than %d values", maxNodes)
	}
	return nil
}

func parseJSON(content []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(content))
	dec.UseNumber()
	v, err := jsonValue(dec, &budget{}, 0)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("JSON near byte %d: %w", dec.InputOffset(), err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("JSON: something follows the document")
	}
	return v, nil
}

func jsonValue(dec *json.Decoder, b *budget, depth int) (any, error) {
	if err := b.take(depth); err != nil {
		return nil, err
	}
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch tok := tok.(type) {
	case json.Number:
		return number(tok.String())
	case json.Delim:
		if tok == '[' {
			return jsonList(dec, b, depth)
		}
		return jsonMap(dec, b, depth)
	default: // string, bool, nil
		return tok, nil
	}
}

func jsonList(dec *json.Decoder, b *budget, depth int) (any, error) {
	list := []any{}
	for dec.More() {
		v, err := jsonValue(dec, b, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := dec.Token()
	return list, err
}

func jsonMap(dec *json.Decoder, b *budget, depth int) (any, error) {
	m := map[string]any{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key, ok := tok.(string)
		if !ok {
			return nil, errors.New("a key is not text")
		}
		if _, twice := m[key]; twice {
			return nil, fmt.Errorf("key %.64q occurs twice", key)
		}
		if m[key], err = jsonValue(dec, b, depth+1); err != nil {
			return nil, err
		}
	}
	_, err := dec.Token()
	return m, err
}

func number(s string) (any, error) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return nil, fmt.Errorf("%.40s is not a number that can be held", s)
	}
	return f, nil
}

// parseYAML reads one YAML document. The library gets to see only what is not
// nested too deep, since it descends by recursion; should it panic all the
// same, that is an error of the document.
func parseYAML(content []byte) (v any, err error) {
	defer func() {
		if p := recover(); p != nil {
			v, err = nil, fmt.Errorf("YAML: it cannot be read: %v", p)
		}
	}()
	content = append(bytes.TrimRight(content, " \t\r\n"), '\n')
	if n := blankLines(content); n*len(content) > maxBlank {
		return nil, fmt.Errorf("YAML: %d blank lines are too many in %d bytes (JSON may have more)", n, len(content))
	}
	tokens := lexer.Tokenize(string(content))
	if err := shallow(tokens); err != nil {
		return nil, fmt.Errorf("YAML: %w", err)
	}
	file, err := parser.Parse(tokens, 0)
	if err != nil {
		return nil, fmt.Errorf("YAML: %w", plain(err))
	}
	var bodies []ast.Node
	for _, doc := range file.Docs {
		if doc.Body != nil {
			bodies = append(bodies, doc.Body)
		}
	}
	if len(bodies) != 1 {
		return nil, fmt.Errorf("YAML: there are %d documents in it, not one", len(bodies))
	}
	y := yamlReader{anchors: map[string]ast.Node{}}
	if v, err = y.value(bodies[0], 0); err != nil {
		return nil, fmt.Errorf("YAML: %w", err)
	}
	return v, nil
}

// blankLines counts the lines without text; each of CR, LF and CR LF ends one.
func blankLines(content []byte) (n int) {
	blank := true
	for i, c := range content {
		switch c {
		case '\n', '\r':
			if blank && !(c == '\n' && i > 0 && content[i-1] == '\r') {
				n++
			}
			blank = true
		case ' ', '\t':
		default:
			blank = false
		}
	}
	return n
}

// plain is an error of the library without the excerpt that it would print:
// that takes long where much is on one line.
func plain(err error) error {
	var y yaml.Error
	if errors.As(err, &y) {
		return fmt.Errorf("line %d: %s", line(y.GetToken()), shorten(y.GetMessage(), maxText))
	}
	return errors.New("it cannot be read")
}

// shallow refuses what would make the parser descend deeper than maxDepth:
// brackets, and entries, keys, anchors and tags that follow each other.
func shallow(tokens token.Tokens) error {
	brackets, run := 0, 0
	for _, t := range tokens {
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			brackets++
		case token.SequenceEndType, token.MappingEndType:
			brackets = max(0, brackets-1)
		}
		switch t.Type {
		case token.SequenceEntryType, token.MappingKeyType, token.MappingValueType, token.AnchorType, token.TagType, token.DirectiveType,
			token.SequenceStartType, token.MappingStartType:
			run++
		default:
			run = 0
		}
		if brackets > maxDepth || run > maxDepth {
			return fmt.Errorf("line %d: it is nested deeper than %d", line(t), maxDepth)
		}
		if t.Position != nil && t.Position.IndentNum > 16*maxDepth {
			return fmt.Errorf("line %d: it is indented too deep", line(t))
		}
	}
	return nil
}

func line(t *token.Token) int {
	if t == nil || t.Position == nil {
		return 0
	}
	return t.Position.Line
}

// yamlReader turns YAML nodes into a tree.
type yamlReader struct {
	budget  budget
	anchors map[string]ast.Node
}

func (y *yamlReader) value(n ast.Node, depth int) (any, error) {
	if n == nil {
		return nil, errors.New("a value is missing")
	}
	at := func(err error) error { return fmt.Errorf("line %d: %w", line(n.GetToken()), err) }
	if err := y.budget.take(depth); err != nil {
		return nil, at(err)
	}
	switch n := n.(type) {
	case *ast.NullNode:
		return nil, nil //nolint:nilnil // null is a value
	case *ast.BoolNode:
		return n.Value, nil
	case *ast.StringNode:
		return n.Value, nil
	case *ast.LiteralNode:
		return n.Value.Value, nil
	case *ast.IntegerNode:
		i, ok := n.Value.(int64)
		if u, unsigned := n.Value.(uint64); unsigned && u <= math.MaxInt64 {
			i, ok = int64(u), true
		}
		if !ok || strconv.FormatInt(i, 10) != n.Token.Value {
			return nil, at(fmt.Errorf("%.40s: write a number in plain decimal digits, or text in quotes", n.Token.Value))
		}
		return i, nil
	case *ast.FloatNode:
		v, err := number(n.Token.Value)
		if err != nil {
			return nil, at(err)
		}
		return v, nil
	case *ast.SequenceNode:
		list := make([]any, 0, len(n.Values))
		for _, e := range n.Values {
			v, err := y.value(e, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case *ast.MappingNode:
		return y.mapping(n.Values, depth)
	case *ast.MappingValueNode:
		return y.mapping([]*ast.MappingValueNode{n}, depth)
	case *ast.AnchorNode:
		// Known to aliases only after its value was read: so none is in itself.
		v, err := y.value(n.Value, depth)
		if err == nil && n.Name != nil {
			y.anchors[n.Name.GetToken().Value] = n.Value
		}
		return v, err
	case *ast.AliasNode:
		name := n.Value.GetToken().Value
		target, ok := y.anchors[name]
		if !ok {
			return nil, at(fmt.Errorf("no anchor %.64q stands before", name))
		}
		return y.value(target, depth+1)
	case *ast.TagNode:
		return nil, at(errors.New("tags are not accepted"))
	default:
		return nil, at(fmt.Errorf("%s is not accepted here", n.Type()))
	}
}

func (y *yamlReader) mapping(pairs []*ast.MappingValueNode, depth int) (any, error) {
	m := make(map[string]any, len(pairs))
	for _, p := range pairs {
		key, ok := p.Key.(*ast.StringNode)
		if !ok {
			return nil, fmt.Errorf("line %d: a key is not text (write it in quotes); merge keys are not accepted", line(p.GetToken()))
		}
		if _, twice := m[key.Value]; twice {
			return nil, fmt.Errorf("line %d: key %.64q occurs twice", line(key.Token), key.Value)
		}
		v, err := y.value(p.Value, depth+1)
		if err != nil {
			return nil, err
		}
		m[key.Value] = v
	}
	return m, nil
}
