module github.com/seglog/seglog/torture/disk

go 1.24.0

replace github.com/seglog/seglog => ../..

require (
	github.com/hanwen/go-fuse/v2 v2.12.1
	github.com/seglog/seglog v0.0.0
	github.com/stretchr/testify v1.11.1
	golang.org/x/sys v0.38.0
)

require (
	github.com/davecgh/go-spew v1.1.1 // indirect
	github.com/pmezard/go-difflib v1.0.0 // indirect
	gopkg.in/yaml.v3 v3.0.1 // indirect
)
