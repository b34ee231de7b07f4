module github.com/seglog/seglog/examples/kafka

go 1.24.0

require (
	github.com/seglog/seglog v0.0.0
	github.com/seglog/seglog/codecs v0.0.0
	github.com/stretchr/testify v1.11.1
	github.com/twmb/franz-go v1.20.7
	github.com/twmb/franz-go/pkg/kadm v1.17.2
	github.com/twmb/franz-go/pkg/kmsg v1.12.0
	golang.org/x/sync v0.16.0
)

require (
	github.com/davecgh/go-spew v1.1.1 // indirect
	github.com/klauspost/compress v1.19.2 // indirect
	github.com/pierrec/lz4/v4 v4.1.33 // indirect
	github.com/pmezard/go-difflib v1.0.0 // indirect
	golang.org/x/crypto v0.48.0 // indirect
	golang.org/x/sys v0.41.0 // indirect
	gopkg.in/yaml.v3 v3.0.1 // indirect
)

replace (
	github.com/seglog/seglog => ../../
	github.com/seglog/seglog/codecs => ../../codecs
)
