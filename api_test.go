package seglog

import (
	"bytes"
	"go/ast"
	"go/printer"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestAPI compares the exported API with testdata/api.txt, so that each change of it shows in review. To accept a change, run
// go test -run TestAPI -update.
func TestAPI(t *testing.T) {
	const name = "testdata/api.txt"
	fset := token.NewFileSet()
	seen := map[string]bool{}
	for _, f := range parse(t, fset, sources(t)) {
		for _, decl := range f.Decls {
			for _, d := range exported(decl) {
				var b bytes.Buffer
				require.NoError(t, (&printer.Config{Mode: printer.RawFormat}).Fprint(&b, token.NewFileSet(), d))
				seen[b.String()] = true
			}
		}
	}
	got := strings.Join(slices.Sorted(maps.Keys(seen)), "\n") + "\n"
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(got), 0o644))
	}
	want, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Equal(t, strings.ReplaceAll(string(want), "\r", ""), got, "go test -run TestAPI -update")
}

// exported returns a declaration for each name that decl exports, without comments, bodies and unexported fields.
func exported(decl ast.Decl) (out []ast.Node) {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && (d.Recv == nil || exportedReceiver(d.Recv)) {
			out = append(out, &ast.FuncDecl{Recv: d.Recv, Name: d.Name, Type: d.Type})
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() {
					out = append(out, &ast.GenDecl{Tok: token.TYPE, Specs: []ast.Spec{&ast.TypeSpec{Name: s.Name, Assign: s.Assign, Type: exportedType(s.Type)}}})
				}
			case *ast.ValueSpec:
				for i, id := range s.Names {
					if !id.IsExported() {
						continue
					}
					v := &ast.ValueSpec{Names: []*ast.Ident{id}, Type: s.Type}
					if d.Tok == token.CONST && len(s.Values) > i {
						v.Values = s.Values[i : i+1]
					}
					out = append(out, &ast.GenDecl{Tok: d.Tok, Specs: []ast.Spec{v}})
				}
			}
		}
	}
	return out
}

func exportedReceiver(recv *ast.FieldList) bool {
	typ := recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

func exportedType(typ ast.Expr) ast.Expr {
	s, ok := typ.(*ast.StructType)
	if !ok {
		return typ
	}
	fields := &ast.FieldList{}
	for _, f := range s.Fields.List {
		var names []*ast.Ident
		for _, id := range f.Names {
			if id.IsExported() {
				names = append(names, id)
			}
		}
		if len(names) > 0 || len(f.Names) == 0 {
			fields.List = append(fields.List, &ast.Field{Names: names, Type: f.Type})
		}
	}
	return &ast.StructType{Fields: fields}
}
