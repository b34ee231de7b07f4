package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mutant is one change of the source. All of them are compiled into one program, and a variable of the environment turns
// one on, so that thousands of them cost one build.
type mutant struct {
	id   int
	file string
	line int
	what string
}

func (m mutant) String() string { return fmt.Sprintf("%s:%d: %s", m.file, m.line, m.what) }

// mutator rewrites one file by insertions alone, so that they nest and lines keep their numbers.
type mutator struct {
	file    string
	src     []byte
	fset    *token.FileSet
	mutants *[]mutant
	before  map[int][]string // by position: what is inserted, outermost first
	after   map[int][]string // innermost first
}

// mutateFile writes a file with its mutants in the place of the file, and returns them.
func mutateFile(path string, mutants *[]mutant) error {
	src, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	m := &mutator{file: filepath.Base(path), src: src, fset: token.NewFileSet(), mutants: mutants, before: map[int][]string{}, after: map[int][]string{}}
	f, err := parser.ParseFile(m.fset, path, src, parser.ParseComments)
	if err != nil {
		return err
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
			ast.Inspect(fn.Body, m.visit)
		}
	}
	var out strings.Builder
	for i := range len(src) + 1 {
		for _, s := range m.after[i] {
			out.WriteString(s)
		}
		for _, s := range m.before[i] {
			out.WriteString(s)
		}
		if i < len(src) {
			out.WriteByte(src[i])
		}
	}
	return os.WriteFile(path, []byte(out.String()), 0o666)
}

func (m *mutator) at(p token.Pos) int { return m.fset.Position(p).Offset }

func (m *mutator) text(n ast.Node) string { return string(m.src[m.at(n.Pos()):m.at(n.End())]) }

// new numbers a mutant.
func (m *mutator) new(n ast.Node, what string) int {
	id := len(*m.mutants) + 1
	*m.mutants = append(*m.mutants, mutant{id, m.file, m.fset.Position(n.Pos()).Line, what + ": " + short(m.text(n))})
	return id
}

func short(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 90 {
		s = s[:90] + "..."
	}
	return s
}

// wrap puts text around a node, inside of what was put around its parents.
func (m *mutator) wrap(n ast.Node, before, after string) {
	from, to := m.at(n.Pos()), m.at(n.End())
	m.before[from] = append(m.before[from], before)
	m.after[to] = slices.Insert(m.after[to], 0, after)
}

// visit is called for each node, parents first.
func (m *mutator) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.ArrayType: // its length is a constant
		return false
	case *ast.GenDecl:
		return n.Tok != token.CONST
	case *ast.BlockStmt:
		m.statements(n.List)
	case *ast.CaseClause:
		m.statements(n.Body)
	case *ast.CommClause:
		m.statements(n.Body)
	case *ast.SwitchStmt:
		if n.Tag == nil {
			for _, c := range n.Body.List {
				for _, e := range c.(*ast.CaseClause).List {
					m.condition(e)
				}
			}
		}
	case *ast.IfStmt:
		m.condition(n.Cond)
	case *ast.ForStmt:
		if n.Cond != nil {
			m.condition(n.Cond)
		}
	case *ast.ReturnStmt:
		for _, e := range n.Results {
			if id, ok := e.(*ast.Ident); ok && (id.Name == "true" || id.Name == "false") {
				m.wrap(e, fmt.Sprintf("(mutated(%d) != ", m.new(e, "the other value")), ")")
			}
		}
	case *ast.BinaryExpr:
		m.binary(n)
	}
	return true
}

// condition negates one that is no comparison, which binary does.
func (m *mutator) condition(e ast.Expr) {
	switch e := e.(type) {
	case *ast.ParenExpr:
		m.condition(e.X)
	case *ast.CallExpr, *ast.Ident, *ast.SelectorExpr, *ast.UnaryExpr:
		m.wrap(e, fmt.Sprintf("(mutated(%d) != (", m.new(e, "negated")), "))")
	}
}

func (m *mutator) binary(e *ast.BinaryExpr) {
	x, y := m.text(e.X), m.text(e.Y)
	switch e.Op {
	case token.LAND, token.LOR:
		// Each of the operands does not count.
		op, not := "||", ""
		if e.Op == token.LOR {
			op, not = "&&", "!"
		}
		m.wrap(e, "(", ")")
		for _, operand := range []ast.Expr{e.X, e.Y} {
			m.wrap(operand, "((", fmt.Sprintf(") %s %smutated(%d))", op, not, m.new(operand, "left out of "+e.Op.String())))
		}
	case token.EQL, token.NEQ, token.LSS, token.LEQ, token.GTR, token.GEQ:
		m.wrap(e, fmt.Sprintf("(mutated(%d) != (", m.new(e, "negated")), "))")
		switch e.Op {
		case token.LSS, token.GTR:
			m.wrap(e, "(", fmt.Sprintf(" || mutated(%d) && (%s) == (%s))", m.new(e, "or equal"), x, y))
		case token.LEQ, token.GEQ:
			m.wrap(e, "(", fmt.Sprintf(" && !(mutated(%d) && (%s) == (%s)))", m.new(e, "not if equal"), x, y))
		}
	case token.ADD, token.SUB:
		if lit, ok := e.Y.(*ast.BasicLit); ok && lit.Value == "1" && !strings.Contains(x, "<<") {
			op := map[token.Token]string{token.ADD: "-", token.SUB: "+"}[e.Op]
			m.wrap(e, "(", fmt.Sprintf(" %s oneIf(%d, %s))", op, m.new(e, "without the 1"), x))
		}
	}
}

// statements leaves each out.
func (m *mutator) statements(list []ast.Stmt) {
	for _, s := range list {
		switch s := s.(type) {
		case *ast.ExprStmt:
			if strings.HasPrefix(m.text(s), "panic(") { // it ends a function
				continue
			}
		case *ast.IncDecStmt, *ast.DeferStmt, *ast.SendStmt:
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE {
				continue
			}
		case *ast.BranchStmt:
			if s.Tok != token.CONTINUE && s.Tok != token.BREAK {
				continue
			}
		default:
			continue
		}
		m.wrap(s, fmt.Sprintf("if !mutated(%d) { ", m.new(s, "left out")), " }")
	}
}

// support is what the mutants call.
const support = `package seglog

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
)

var (
	mutantOn, _  = strconv.Atoi(os.Getenv("SEGLOG_MUTANT"))
	mutantsSeen  [%d]atomic.Bool
	mutantsFile  = os.Getenv("SEGLOG_MUTANTS_SEEN")
)

func mutated(n int) bool {
	if mutantsFile != "" && !mutantsSeen[n].Swap(true) {
		f, err := os.OpenFile(mutantsFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
		if err != nil {
			panic(err)
		}
		fmt.Fprintln(f, n)
		f.Close()
	}
	return n == mutantOn
}

func oneIf[T ~int | ~int32 | ~int64 | ~uint32 | ~uint64](n int, _ T) T {
	if mutated(n) {
		return 1
	}
	return 0
}
`
