module github.com/hashicorp/raft-boltdb

go 1.25.0

require github.com/seglog/seglog/raftstore v0.0.0

replace (
	github.com/seglog/seglog => ../../..
	github.com/seglog/seglog/raftstore => ../..
)
