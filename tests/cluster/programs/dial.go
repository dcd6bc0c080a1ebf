// dial connects to its argument (host:port), fetches the page and prints the peer's address and the first line of the
// answer. Built without cgo it is a static program with Go's own resolver.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	conn, err := net.DialTimeout("tcp", os.Args[1], 10*time.Second)
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: dial\r\nConnection: close\r\n\r\n")
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(conn.RemoteAddr(), line)
}
