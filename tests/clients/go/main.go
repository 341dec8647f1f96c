// Command clients makes the calls of a test with grpc-go or connect-go.
//
// Its only argument is the options, as JSON. It reads calls from standard input, one JSON object a
// line, makes them at the same time, and writes a line for each message and for the end of each
// call. It ends with its input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	listingsv1 "listings/tests/clients/gen/listings/v1"
)

// Options say which client to use, and how it connects.
type Options struct {
	Library       string          `json:"library"`
	Protocol      string          `json:"protocol"`
	URL           string          `json:"url"`
	CA            string          `json:"ca"`    // a file, or nothing for plain text
	Token         string          `json:"token"` // or nothing
	ServiceConfig json.RawMessage `json:"service_config"`
}

// Call is a line of the input. Times are in milliseconds; 0 is without.
type Call struct {
	ID       int             `json:"id"`
	Method   string          `json:"method"`
	Request  json.RawMessage `json:"request"`
	Deadline int             `json:"deadline"`
	Cancel   int             `json:"cancel"`
}

// Line is a line of the output: a message, or the end of a call with its error, if there is one.
type Line struct {
	ID      int             `json:"id"`
	Message json.RawMessage `json:"message,omitempty"`
	Error   *Error          `json:"error,omitempty"`
}

// Error is how a call failed: the number of the code, and the details as protobuf's JSON.
type Error struct {
	Code    uint32            `json:"code"`
	Message string            `json:"message"`
	Details []json.RawMessage `json:"details"`
}

// Client has the methods that are tested. An error is one of Failure's.
type Client interface {
	UpdateOrderPayment(context.Context, *listingsv1.UpdateOrderPaymentRequest) (*listingsv1.UpdateOrderPaymentResponse, error)
	GetOrder(context.Context, *listingsv1.GetOrderRequest) (*listingsv1.GetOrderResponse, error)
	ListOrders(context.Context, *listingsv1.ListOrdersRequest) (*listingsv1.ListOrdersResponse, error)
	WatchOrderPayments(context.Context, *listingsv1.WatchOrderPaymentsRequest) (Stream, error)
	// Failure returns what an error of this client says.
	Failure(error) *Error
}

// Stream is what a watch receives. It ends with io.EOF.
type Stream interface {
	Recv() (*listingsv1.WatchOrderPaymentsResponse, error)
}

func main() {
	var options Options
	check(json.Unmarshal([]byte(os.Args[1]), &options))
	var client Client
	switch options.Library {
	case "grpc-go":
		client = newGRPC(options)
	case "connect-go":
		client = newConnect(options)
	default:
		log.Fatalf("there is no library %q", options.Library)
	}
	output := json.NewEncoder(os.Stdout)
	var mutex sync.Mutex
	var calls sync.WaitGroup
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var call Call
		check(json.Unmarshal(lines.Bytes(), &call))
		calls.Go(func() {
			write := func(line Line) {
				line.ID = call.ID
				mutex.Lock()
				defer mutex.Unlock()
				check(output.Encode(line))
			}
			write(Line{Error: run(client, call, func(message proto.Message) {
				write(Line{Message: encode(message)})
			})})
		})
	}
	check(lines.Err())
	calls.Wait()
}

// run makes a call, and returns how it failed, or nil.
func run(client Client, call Call, received func(proto.Message)) *Error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if call.Deadline > 0 {
		ctx, cancel = context.WithTimeout(ctx, milliseconds(call.Deadline))
		defer cancel()
	}
	if call.Cancel > 0 {
		defer time.AfterFunc(milliseconds(call.Cancel), cancel).Stop()
	}
	message, err := send(ctx, client, call, received)
	if err != nil {
		return client.Failure(err)
	}
	if message != nil {
		received(message)
	}
	return nil
}

func send(ctx context.Context, client Client, call Call, received func(proto.Message)) (proto.Message, error) {
	switch call.Method {
	case "UpdateOrderPayment":
		return unary(ctx, call, &listingsv1.UpdateOrderPaymentRequest{}, client.UpdateOrderPayment)
	case "GetOrder":
		return unary(ctx, call, &listingsv1.GetOrderRequest{}, client.GetOrder)
	case "ListOrders":
		return unary(ctx, call, &listingsv1.ListOrdersRequest{}, client.ListOrders)
	case "WatchOrderPayments":
		request := &listingsv1.WatchOrderPaymentsRequest{}
		check(protojson.Unmarshal(call.Request, request))
		stream, err := client.WatchOrderPayments(ctx, request)
		for err == nil {
			var message *listingsv1.WatchOrderPaymentsResponse
			if message, err = stream.Recv(); err == nil {
				received(message)
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return nil, err
	default:
		log.Fatalf("there is no method %q", call.Method)
		return nil, nil
	}
}

func unary[Request, Response proto.Message](
	ctx context.Context, call Call, request Request, method func(context.Context, Request) (Response, error),
) (proto.Message, error) {
	check(protojson.Unmarshal(call.Request, request))
	response, err := method(ctx, request)
	if err != nil {
		return nil, err
	}
	return response, nil
}

func encode(message proto.Message) json.RawMessage {
	encoded, err := protojson.Marshal(message)
	check(err)
	return encoded
}

func milliseconds(number int) time.Duration {
	return time.Duration(number) * time.Millisecond
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
