// A client and a server of grpc-go, as their library comes: nothing is set but the size of a message. Messages are bytes,
// so that nothing is generated.
//
//	grpc-go serve [CERT KEY]
//	    serves on a free port of 127.0.0.1 and prints it; ends with its standard input
//	grpc-go call ADDRESS CALL [CA NAME]
//	    makes one of the calls below and says "ok", or what came instead
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
)

const (
	small    = 20
	nSmall   = 20000
	large    = 4 << 20
	nLarge   = 6
	most     = large + 1024
	deadline = 2 * time.Minute
)

// Messages that are bytes.
type raw struct{}

func (raw) Name() string                          { return "raw" }
func (raw) Marshal(v interface{}) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v interface{}) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

// ---- the server ----

func unary(_ interface{}, _ context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor) (interface{}, error) {
	var message []byte
	if err := decode(&message); err != nil {
		return nil, err
	}
	return &message, nil
}

// Answers a whole stream with the number of its messages, which have to be in order.
func upload(_ interface{}, stream grpc.ServerStream) error {
	n, err := receive(stream.RecvMsg)
	if err != nil {
		return err
	}
	return stream.SendMsg(numbered(n, 8))
}

// Sends as many messages as it is told, of the size that it is told.
func download(_ interface{}, stream grpc.ServerStream) error {
	var message []byte
	if err := stream.RecvMsg(&message); err != nil {
		return err
	}
	n, size := binary.BigEndian.Uint64(message), binary.BigEndian.Uint64(message[8:])
	return send(stream.SendMsg, int(n), int(size))
}

func talk(_ interface{}, stream grpc.ServerStream) error {
	for {
		var message []byte
		if err := stream.RecvMsg(&message); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
}

var service = grpc.ServiceDesc{
	ServiceName: "test.Raw",
	HandlerType: (*interface{})(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Unary", Handler: unary}},
	Streams: []grpc.StreamDesc{
		{StreamName: "Upload", Handler: upload, ClientStreams: true},
		{StreamName: "Download", Handler: download, ServerStreams: true},
		{StreamName: "Talk", Handler: talk, ClientStreams: true, ServerStreams: true},
	},
}

func serve(files []string) error {
	options := []grpc.ServerOption{grpc.MaxRecvMsgSize(most)}
	if len(files) == 2 {
		secure, err := credentials.NewServerTLSFromFile(files[0], files[1])
		if err != nil {
			return err
		}
		options = append(options, grpc.Creds(secure))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer(options...)
	server.RegisterService(&service, nil)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return server.Serve(listener)
}

// ---- the client ----

func numbered(n uint64, size int) *[]byte {
	message := make([]byte, size)
	binary.BigEndian.PutUint64(message, n)
	return &message
}

func send(sendMsg func(interface{}) error, n, size int) error {
	for i := 0; i < n; i++ {
		if err := sendMsg(numbered(uint64(i), size)); err != nil {
			return fmt.Errorf("message %d was not sent: %w", i, err)
		}
	}
	return nil
}

// Receives to the end; each message has to be the next.
func receive(recvMsg func(interface{}) error) (uint64, error) {
	for n := uint64(0); ; n++ {
		var message []byte
		if err := recvMsg(&message); err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, fmt.Errorf("after %d messages: %w", n, err)
		}
		if got := binary.BigEndian.Uint64(message); got != n {
			return n, fmt.Errorf("message %d came as the %dth", got, n)
		}
	}
}

type client struct{ *grpc.ClientConn }

func dial(address string, tls []string) (client, error) {
	options := []grpc.DialOption{grpc.WithDefaultCallOptions(
		grpc.CallContentSubtype("raw"), grpc.MaxCallRecvMsgSize(most), grpc.MaxCallSendMsgSize(most))}
	if len(tls) == 2 {
		secure, err := credentials.NewClientTLSFromFile(tls[0], tls[1])
		if err != nil {
			return client{}, err
		}
		options = append(options, grpc.WithTransportCredentials(secure))
	} else {
		options = append(options, grpc.WithInsecure())
	}
	connection, err := grpc.Dial(address, options...)
	return client{connection}, err
}

func (c client) unary(ctx context.Context, n, size int) error {
	for i := 0; i < n; i++ {
		var answer []byte
		if err := c.Invoke(ctx, "/test.Raw/Unary", numbered(uint64(i), size), &answer); err != nil {
			return fmt.Errorf("call %d: %w", i, err)
		}
		if len(answer) != size || binary.BigEndian.Uint64(answer) != uint64(i) {
			return fmt.Errorf("call %d was answered with %d bytes", i, len(answer))
		}
	}
	return nil
}

func (c client) stream(ctx context.Context, n int) (grpc.ClientStream, error) {
	return c.NewStream(ctx, &service.Streams[n], "/test.Raw/"+service.Streams[n].StreamName)
}

func (c client) upload(ctx context.Context, n, size int) error {
	stream, err := c.stream(ctx, 0)
	if err != nil {
		return err
	}
	if err := send(stream.SendMsg, n, size); err != nil {
		// The response has the result of the stream.
		var answer []byte
		return fmt.Errorf("%v; %w", err, stream.RecvMsg(&answer))
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	var answer []byte
	if err := stream.RecvMsg(&answer); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint64(answer); got != uint64(n) {
		return fmt.Errorf("%d of %d messages arrived", got, n)
	}
	return nil
}

// A stream on which so many messages come, and what receives them.
func (c client) download(ctx context.Context, n, size int) (func() error, error) {
	stream, err := c.stream(ctx, 1)
	if err != nil {
		return nil, err
	}
	order := numbered(uint64(n), 16)
	binary.BigEndian.PutUint64((*order)[8:], uint64(size))
	if err := stream.SendMsg(order); err != nil {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	return func() error { return expect(stream, n) }, nil
}

func expect(stream grpc.ClientStream, n int) error {
	got, err := receive(stream.RecvMsg)
	if err == nil && got != uint64(n) {
		err = fmt.Errorf("%d of %d messages came", got, n)
	}
	return err
}

func (c client) talk(ctx context.Context, n, size int) error {
	stream, err := c.stream(ctx, 2)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		err := send(stream.SendMsg, n, size)
		if err == nil {
			err = stream.CloseSend()
		}
		sent <- err
	}()
	if err := expect(stream, n); err != nil {
		return err
	}
	return <-sent
}

// One that does not read until nine others, over its connection and over another, have all of theirs.
func slow(ctx context.Context, a, b client) error {
	late, err := a.download(ctx, nSmall, small)
	if err != nil {
		return err
	}
	done := make(chan error)
	for i := 0; i < 9; i++ {
		c := a
		if i%2 == 0 {
			c = b
		}
		go func() {
			receive, err := c.download(ctx, nSmall, small)
			if err == nil {
				err = receive()
			}
			done <- err
		}()
	}
	for i := 0; i < 9; i++ {
		if err := <-done; err != nil {
			return fmt.Errorf("a fast one: %w", err)
		}
	}
	if err := late(); err != nil {
		return fmt.Errorf("the slow one: %w", err)
	}
	return nil
}

func call(address, name string, tls []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	c, err := dial(address, tls)
	if err != nil {
		return err
	}
	// Both sizes one after the other, over one connection.
	both := func(f func(ctx context.Context, n, size int) error) error {
		if err := f(ctx, nSmall, small); err != nil {
			return fmt.Errorf("small messages: %w", err)
		}
		if err := f(ctx, nLarge, large); err != nil {
			return fmt.Errorf("large messages: %w", err)
		}
		return nil
	}
	switch name {
	case "unary":
		return both(func(ctx context.Context, n, size int) error {
			if n > 1000 {
				n = 1000
			}
			return c.unary(ctx, n, size)
		})
	case "upload":
		return both(c.upload)
	case "download":
		return both(func(ctx context.Context, n, size int) error {
			receive, err := c.download(ctx, n, size)
			if err != nil {
				return err
			}
			return receive()
		})
	case "talk":
		return both(c.talk)
	case "slow":
		other, err := dial(address, tls)
		if err != nil {
			return err
		}
		return slow(ctx, c, other)
	}
	return errors.New("no such call: " + name)
}

func main() {
	log.SetFlags(0)
	encoding.RegisterCodec(raw{})
	var err error
	switch arguments := os.Args[1:]; {
	case len(arguments) > 0 && arguments[0] == "serve":
		err = serve(arguments[1:])
	case len(arguments) > 2 && arguments[0] == "call":
		err = call(arguments[1], arguments[2], arguments[3:])
	default:
		err = errors.New("grpc-go serve [CERT KEY] | grpc-go call ADDRESS CALL [CA NAME]")
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ok")
}
