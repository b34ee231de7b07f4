//go:build !linux

package main

import "net"

func writeMore(c *net.TCPConn, b []byte) error {
	_, err := c.Write(b)
	return err
}
